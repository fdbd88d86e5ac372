/* explained_hdf5 plain|converted FILE WRITES: H5Dwrite of integers, kept as they are or converted. */
#include <hdf5.h>
#include <stdlib.h>
#include <string.h>

enum { NUMBERS = 32768 };

int main(int argc, char **argv)
{
	static int numbers[NUMBERS];
	int writes = atoi(argv[3]);
	hid_t kept = strcmp(argv[1], "plain") ? H5T_IEEE_F32BE : H5T_NATIVE_INT;
	hsize_t part = NUMBERS, total = (hsize_t)NUMBERS * writes;
	hid_t file = H5Fcreate(argv[2], H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
	hid_t memory = H5Screate_simple(1, &part, NULL), space = H5Screate_simple(1, &total, NULL);
	hid_t set = H5Dcreate2(file, "numbers", kept, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);

	for (int i = 0; i < NUMBERS; i++)
		numbers[i] = i;
	for (int i = 0; i < writes; i++) {
		hsize_t start = (hsize_t)NUMBERS * i;

		H5Sselect_hyperslab(space, H5S_SELECT_SET, &start, NULL, &part, NULL);
		if (H5Dwrite(set, H5T_NATIVE_INT, memory, space, H5P_DEFAULT, numbers) < 0)
			return 1;
	}
	return H5Dclose(set) < 0 || H5Fclose(file) < 0;
}
