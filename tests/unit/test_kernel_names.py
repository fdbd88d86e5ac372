"""Kernel functions: names from kallsyms and headers, and what is left out of them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datacrumbs.errors import BadInputError, UserError
from datacrumbs.probes import headers, kernel
from datacrumbs.probes.kernel import KernelNames, kernel_names, select

SYMBOLS = """\
0000000000000000 T __entry_text_start
0000000000000000 t entry_thing
0000000000000000 T __entry_text_end
0000000000000000 T vfs_read
0000000000000000 t __pfx_vfs_read
0000000000000000 W weak_read
0000000000000000 D vfs_table
0000000000000000 t twice
0000000000000000 t twice
0000000000000000 t io_step.isra.0
0000000000000000 t io_step.cold
0000000000000000 T __kprobes_text_end
0000000000000000 T __kprobes_text_start
0000000000000000 T __noinstr_text_start
0000000000000000 T very_early
0000000000000000 T __noinstr_text_end
0000000000000000 T _sinittext
0000000000000000 t start_up
0000000000000000 T _einittext
0000000000000000 t lustre_read\t[lustre]
"""


@pytest.fixture
def symbols(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kernel that says no more than SYMBOLS; a directory for what else it may say."""
    (tmp_path / "kallsyms").write_text(SYMBOLS)
    monkeypatch.setattr(kernel, "KALLSYMS", tmp_path / "kallsyms")
    monkeypatch.setattr(kernel, "TRACEFS", (tmp_path / "tracing",))
    monkeypatch.setattr(kernel, "BLACKLIST", tmp_path / "blacklist")
    (tmp_path / "tracing").mkdir()
    return tmp_path


def _fresh() -> KernelNames:
    return kernel_names.__wrapped__()


def test_names_and_their_order_tell_what_cannot_be_probed(symbols: Path) -> None:
    names = _fresh()
    assert names.functions == {"vfs_read", "weak_read", "io_step.isra.0", "lustre_read"}
    assert names.refused == {
        "entry_thing": kernel.NO_PROBE_SECTION,
        "twice": "2 functions of this kernel have this name",
        "io_step.cold": "a part of another function that is jumped to",
        "very_early": kernel.NO_PROBE_SECTION,
        "start_up": kernel.INIT,
    }
    assert names.note


def test_what_the_kernel_says_counts_where_it_may_be_read(symbols: Path) -> None:
    (symbols / "tracing/available_filter_functions").write_text(
        "vfs_read\nio_step.isra.0\nlustre_read [lustre]\nelsewhere\n"
    )
    (symbols / "blacklist").write_text("0xffffffff81000000-0xffffffff81000010\tio_step.isra.0\n")
    names = _fresh()
    assert names.functions == {"vfs_read", "lustre_read"}
    assert names.refused["weak_read"] == kernel.NOT_FTRACE
    assert names.refused["io_step.isra.0"] == kernel.NOT_KPROBE
    assert names.note == ""


def test_a_function_the_compiler_made_goes_by_either_name(symbols: Path) -> None:
    names = _fresh()
    for regex in ("io_step", r"io_step\.isra\.0", "io_.*"):
        functions, _ = select(names, re.compile(regex))
        assert [f.name for f in functions] == ["io_step.isra.0"]
    _, skipped = select(names, re.compile("twice|vfs_read"))
    assert skipped == [("twice", "2 functions of this kernel have this name")]
    functions, skipped = select(names, re.compile(".*"), {"vfs_read", "io_step"})
    assert [f.name for f in functions] == ["io_step.isra.0", "vfs_read"]
    assert skipped == []


def test_a_kernel_without_symbols_is_an_error(symbols: Path) -> None:
    (symbols / "kallsyms").write_text("")
    with pytest.raises(UserError, match="cannot find this kernel's functions in"):
        _fresh()


def test_this_kernel_has_the_functions_that_it_lists_once() -> None:
    names = kernel_names()
    lines = Path("/proc/kallsyms").read_text().splitlines()
    listed = Counter(x.split()[2] for x in lines if x.split()[1] in "tTwW")
    assert len(names.functions) > 10_000
    assert all(listed[name] == 1 for name in names.functions)
    assert "vfs_write" in names.functions
    assert not [name for name in names.functions if name.startswith("__pfx_") or ".cold" in name]


def test_pairs_of_tracepoints_are_one(symbols: Path) -> None:
    events = ("ext4_sync_file_enter", "ext4_sync_file_exit", "ext4_drop_inode", "block_rq_issue")
    events += ("block_rq_complete", "jbd2_handle_start", "mm_filemap_fault", "lone_end")
    events += kernel.REQUESTS["nfs_rq"]
    lines = [f"0000000000000000 T __traceiter_{event}" for event in events]
    (symbols / "kallsyms").write_text("\n".join(lines) + "\n")
    assert kernel.tracepoints.__wrapped__() == (
        "block:block_rq",
        "ext4:ext4_drop_inode",
        "ext4:ext4_sync_file",
        "filemap:mm_filemap_fault",
        "jbd2:jbd2_handle_start",
        "lone:lone_end",
        "nfs:nfs_rq",
    )
    (symbols / "tracing/available_events").write_text("other:lone_end\nraw:jbd2_handle_start\n")
    found = kernel.tracepoints.__wrapped__()
    assert {"other:lone_end", "raw:jbd2_handle_start"} <= set(found)


def test_this_kernels_tracepoints_are_those_it_lists() -> None:
    found = set(kernel.tracepoints())
    assert {"ext4:ext4_sync_file", "block:block_rq", "jbd2:jbd2_handle_start"} <= found
    assert not {"ext4:ext4_sync_file_enter", "block:block_rq_issue"} & found


HEADER = """\
/* int in_a_comment(void); */
// int in_a_line(void);
#define MACRO(x) \\
        int in_a_macro(x)
extern int plain(struct inode *inode, loff_t pos);
void __printf(2, 3) with_attribute(const char *fmt, ...) __attribute__((cold));
static inline void inlined(void)
{
        called_inside();
        if (other_call()) { deeper_call(); }
}
struct address_space_operations {
        int (*a_member)(struct page *);
        void inside(void);
};
typedef int filler_t(struct file *, struct folio *);
struct folio *__filemap_get_folio(struct address_space *mapping, pgoff_t index,
                fgf_t fgp_flags, gfp_t gfp);
DECLARE_STATIC_KEY_FALSE(some_key);
int variable = some_initialiser(3);
unsigned int array[sizeof(int)];
"""


def test_a_header_declares_what_is_outside_braces_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "a.h"
    path.write_text(HEADER)
    names = {"plain", "with_attribute", "inlined", "__filemap_get_folio"}
    assert headers.header_functions(path) == names


@given(st.text(alphabet="ab_ (){};*=#/\\\n,", max_size=60))
def test_no_text_breaks_the_header_parser(text: str) -> None:
    for declaration in headers._declarations(headers._DIRECTIVE.sub("", text)):
        name = headers._declared(declaration)
        assert name == "" or re.fullmatch(r"[A-Za-z_]\w*", name)


def test_the_running_kernels_header_comes_before_that_for_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headers, "INCLUDE", tmp_path / "include")
    monkeypatch.setattr(headers, "SOURCES", tmp_path / "src")
    monkeypatch.setattr(headers, "MODULES", tmp_path / "modules")
    monkeypatch.setattr(headers.platform, "release", lambda: "6.1.0-40-amd64")
    places = [
        "include",
        "src/linux-headers-5.0/include",
        "src/linux-headers-6.1.0-40-common/include",
    ]
    for place in places:
        header = tmp_path / place / "linux/fs.h"
        header.parent.mkdir(parents=True)
        header.write_text("int vfs_read(void);\n")
        assert headers.find_kernel_header("linux/fs.h", "x86_64") == header
        assert headers.find_header("linux/fs.h", "x86_64") == tmp_path / "include/linux/fs.h"
    with pytest.raises(BadInputError, match="no such header in") as caught:
        headers.find_kernel_header("linux/none.h", "x86_64")
    assert "type: ksym, which needs none" in caught.value.hint
