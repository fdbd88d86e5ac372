"""Programs on HDF5 and MPI-IO: every layer counts exactly, each lies within the one above."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

import pytest
from kernel.tracing import Trace, TracedRun

from datacrumbs.probes import elf, model

HDF5 = r"H5(Fcreate|Fclose|Dcreate2|Dclose|Dwrite|Dread)"
MPI = r"MPI_File_(open|close|(read|write)_at(_all)?)"
LIBC = r"p?(read|write)v?(64)?"
WRITES, BYTES = 23, 4097

PROGRAM = f"""
#include <hdf5.h>
#include <stdlib.h>
int main(int argc, char **argv) {{
    int rank, ranks;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    hid_t access = H5Pcreate(H5P_FILE_ACCESS), transfer = H5Pcreate(H5P_DATASET_XFER);
    H5Pset_fapl_mpio(access, MPI_COMM_WORLD, MPI_INFO_NULL);
    H5Pset_dxpl_mpio(transfer, H5FD_MPIO_INDEPENDENT);
    hid_t file = H5Fcreate("out.h5", H5F_ACC_TRUNC, H5P_DEFAULT, access);
    hsize_t total = (hsize_t){WRITES} * {BYTES} * ranks, part = {BYTES};
    hid_t space = H5Screate_simple(1, &total, NULL), memory = H5Screate_simple(1, &part, NULL);
    hid_t data = H5Dcreate2(file, "data", H5T_NATIVE_CHAR, space, 0, 0, 0);
    char buffer[{BYTES}], again[{BYTES}];
    for (int i = 0; i < {BYTES}; i++) buffer[i] = i + rank;
    for (int i = 0; i < {WRITES}; i++) {{
        hsize_t start = (hsize_t)(i * ranks + rank) * {BYTES};
        H5Sselect_hyperslab(space, H5S_SELECT_SET, &start, NULL, &part, NULL);
        H5Dwrite(data, H5T_NATIVE_CHAR, memory, space, transfer, buffer);
    }}
    for (int i = 0; i < {WRITES}; i++) {{
        hsize_t start = (hsize_t)(i * ranks + rank) * {BYTES};
        H5Sselect_hyperslab(space, H5S_SELECT_SET, &start, NULL, &part, NULL);
        H5Dread(data, H5T_NATIVE_CHAR, memory, space, transfer, again);
        if (again[7] != buffer[7]) abort();
    }}
    H5Dclose(data);
    H5Fclose(file);
    MPI_Finalize();
}}
"""

NESTS = """
SELECT g.name, count(*)::INT, count(DISTINCT inside.pid)::INT
FROM events inside JOIN functions f ON f.func = inside.func AND f.kind = 'syscall'
JOIN files USING (file)
JOIN events outside ON outside.tid = inside.tid AND outside.ts <= inside.ts
 AND outside.ts + outside.dur >= inside.ts + inside.dur
JOIN functions g ON g.func = outside.func AND g.kind = 'user'
WHERE path LIKE '%/out.h5' AND inside.ret = ? AND regexp_matches(f.name, ?)
GROUP BY g.name ORDER BY g.name
"""
"""The functions that system calls of so many bytes lie within."""


def library(name: str, regex: str, layer: str) -> model.UserLayer:
    path = elf.find_binary(name, platform.machine())
    found = elf.read_functions(path, re.compile(regex), platform.machine())
    return model.UserLayer(
        name=layer,
        binary=str(path),
        functions=found.functions,
        build_id=found.build_id,
        digest=found.digest,
    )


def compile_hdf5(run: TracedRun) -> Path:
    program = run.work / "program"
    program.with_suffix(".c").write_text(PROGRAM)
    command = ["h5pcc", "-shlib", "-w", "-O1", "-o", program, program.with_suffix(".c")]
    subprocess.run(command, check=True, cwd=run.work, capture_output=True)
    return program


def called(trace: Trace, layer: str) -> dict[str, int]:
    """How often each function of a layer was called."""
    rows = trace.sql(
        "SELECT n.name, count(*) FROM events JOIN functions n USING (func) "
        f"WHERE layer = '{layer}' GROUP BY 1"
    )
    return dict(rows)


@pytest.mark.parametrize("ranks", [2, 4])
def test_parallel_hdf5(traced_run: TracedRun, ranks: int) -> None:
    program = compile_hdf5(traced_run)
    layers = [
        library("libhdf5_openmpi.so.103", HDF5, "hdf5"),
        library("libmpi.so.40", MPI, "mpi"),
        library("libc.so.6", LIBC, "libc"),
        model.SyscallLayer(
            name="syscall",
            functions=[
                "read",
                "write",
                "pread64",
                "pwrite64",
                "readv",
                "writev",
                "preadv",
                "pwritev",
            ],
        ),
    ]
    command = ["mpirun", "--oversubscribe", "-n", str(ranks), "--mca", "btl", "self,vader", program]
    with traced_run.daemon(*layers):
        traced_run.run(*command)
    trace = traced_run.trace()
    each = {"H5Fcreate": 1, "H5Dcreate2": 1, "H5Dclose": 1, "H5Fclose": 1}
    wanted = each | {"H5Dwrite": WRITES, "H5Dread": WRITES}
    assert called(trace, "hdf5") == {name: count * ranks for name, count in wanted.items()}
    mpi = called(trace, "mpi")
    assert mpi["MPI_File_open"] == mpi["MPI_File_close"] == ranks
    assert mpi["MPI_File_write_at"] >= WRITES * ranks
    for name, call in (("H5Dwrite", "write"), ("H5Dread", "read")):
        rows = trace.sql(NESTS, BYTES, call)
        layers_passed = {row[0] for row in rows}
        assert all(row[1:] == (WRITES * ranks, ranks) for row in rows), rows
        assert name in layers_passed
        assert f"MPI_File_{call}_at" in layers_passed
        assert len(layers_passed) == 3  # and one function of libc
    overlaps = trace.sql(
        "SELECT count(*) FROM events a JOIN events b ON a.tid = b.tid AND a.ts < b.ts "
        "AND b.ts < a.ts + a.dur AND b.ts + b.dur > a.ts + a.dur"
    )
    assert overlaps == [(0,)]
