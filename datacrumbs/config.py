"""The system configuration: the admin's ``system.yaml``, strict and typed.

Looked for at ``<sys.prefix>/etc/datacrumbs/system.yaml``, then
``/etc/datacrumbs/system.yaml``; without either, the defaults below hold. The installed file
documents every key.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml
from msgspec import Meta, Struct

from datacrumbs.errors import BadInputError
from datacrumbs.strict_yaml import load_strict, nearest

CONFIG_NAME = "datacrumbs/system.yaml"

Positive = Annotated[int, Meta(ge=1)]
Absolute = Annotated[str, Meta(pattern=r"^/")]

TRACE_DIR_FIELDS = ("user", "home", "uid", "run_id", "host")


class Keys(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where keys are. The private key exists on the signing host only."""

    private: Absolute = "/etc/datacrumbs/signing/private.pem"
    public_dir: Absolute = "/etc/datacrumbs/keys"


class Signing(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The signing service."""

    socket: Absolute = "/run/datacrumbs-signing/sign.sock"
    max_request_bytes: Positive = 16 * 1024 * 1024
    timeout_s: Annotated[float, Meta(gt=0, le=300)] = 5.0
    max_clients: Annotated[int, Meta(ge=1, le=1024)] = 512
    max_clients_per_user: Annotated[int, Meta(ge=1, le=1024)] = 128


class KernelArguments(StrEnum):
    """Which arguments of kernel functions may be captured."""

    NONE = "none"
    NUMBERS = "numbers"  # no pointers: neither what they lead to nor where
    ALL = "all"


KERNEL_FUNCTIONS = (
    *("vfs_*", "do_sys_open*", "do_filp_open", "file_*", "generic_file_*", "generic_perform_write"),
    *(
        "iomap_*",
        "filemap_*",
        "__filemap_*",
        "mm_filemap_*",
        "folio_*",
        "page_cache_*",
        "pagecache_*",
    ),
    *(
        "readahead_*",
        "force_page_cache_ra",
        "ondemand_readahead",
        "mpage_*",
        "block_*",
        "__block_*",
    ),
    *("dax_*", "write_cache_pages", "do_writepages", "writeback_*", "__writeback_*", "wb_*"),
    *("balance_dirty_pages*", "sync_file*", "sync_inode*", "sync_blockdev*", "sync_dirty_*"),
    *("submit_bio*", "bio_*", "__bio_*", "blk_*", "__blk_*", "blkdev_*", "io_read", "io_write"),
    *("ext4_*", "__ext4_*", "jbd2_*", "__jbd2_*", "xfs_*", "__xfs_*", "btrfs_*", "__btrfs_*"),
    *("f2fs_*", "nfs_*", "nfs4_*", "rpc_*", "fuse_*", "ovl_*", "ceph_*", "cifs_*", "smb2_*"),
    *(
        "netfs_*",
        "ll_*",
        "lov_*",
        "osc_*",
        "mdc_*",
        "cl_*",
        "ptlrpc_*",
        "vvp_*",
        "gpfs*",
        "FhgfsOps_*",
    ),
    *("nvme_*", "scsi_*", "sd_*", "dm_*", "md_*", "io_uring_*"),
)
"""File systems, page cache, block layer and their drivers: see system.yaml for why no more."""


class Policy(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the signing service signs."""

    min_uid: Annotated[int, Meta(ge=0)] = 1000
    max_functions: Positive = 100_000
    max_lifetime_s: Positive = 30 * 24 * 3600
    binaries: tuple[str, ...] = ("/*",)
    syscalls: tuple[str, ...] = ("*",)
    kernel_functions: tuple[str, ...] = KERNEL_FUNCTIONS
    kernel_arguments: KernelArguments = KernelArguments.NUMBERS
    max_argument_bytes: Annotated[int, Meta(ge=0, le=1536)] = 512
    custom: bool = False


class Ring(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Kernel memory that holds events until the daemon has drained them."""

    total_bytes: Annotated[int, Meta(ge=1 << 20, le=1 << 36)] = 512 << 20
    max_ring_bytes: Annotated[int, Meta(ge=1 << 16, le=1 << 30)] = 16 << 20
    min_ring_bytes: Annotated[int, Meta(ge=1 << 16, le=1 << 30)] = 2 << 20
    cpus_per_ring: Annotated[int, Meta(ge=1, le=1024)] = 1
    strings_bytes: Annotated[int, Meta(ge=1 << 16, le=1 << 30)] = 8 << 20


class Profile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Profile mode: how often its sums are taken, and room for them."""

    interval_s: Annotated[float, Meta(ge=0.1, le=60)] = 1.0
    entries: Annotated[int, Meta(ge=1024, le=1 << 22)] = 65_536


class Segment(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The pieces a trace is written in."""

    events: Annotated[int, Meta(ge=1024, le=1 << 26)] = 256 * 1024


class Limits(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the daemon takes at most."""

    probe_file_bytes: Positive = 16 * 1024 * 1024
    functions: Annotated[int, Meta(ge=1, le=65535)] = 65_535
    files: Positive = 1 << 20


class OnError(StrEnum):
    """What becomes of a job that was to be traced and cannot be."""

    CONTINUE = "continue"
    FAIL = "fail"


class Jobs(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Tracing the jobs of a scheduler."""

    on_error: OnError = OnError.CONTINUE
    start_timeout_s: Annotated[float, Meta(gt=0, le=600)] = 10.0
    stop_timeout_s: Annotated[float, Meta(gt=0, le=600)] = 30.0
    abandoned_after_s: Annotated[int, Meta(ge=0)] = 3600
    time_limit_s: Positive = 30 * 24 * 3600


class SystemConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All of ``system.yaml``; every key has a default."""

    trace_dir: str = "{home}/datacrumbs"
    run_dir: Absolute = "/run/datacrumbs"
    log_dir: Absolute = "/var/log/datacrumbs"
    state_dir: Absolute = "/var/lib/datacrumbs"
    cluster: str = ""
    client_library: str = ""
    keys: Keys = Keys()
    signing: Signing = Signing()
    policy: Policy = Policy()
    ring: Ring = Ring()
    profile: Profile = Profile()
    segment: Segment = Segment()
    limits: Limits = Limits()
    jobs: Jobs = Jobs()

    def trace_root(self, *, user: str, home: str, uid: int, run_id: str, host: str) -> Path:
        """The directory that holds runs, with the pattern's fields filled in."""
        path = self.trace_dir.format(user=user, home=home, uid=uid, run_id=run_id, host=host)
        return Path(path)

    def client_library_path(self) -> Path:
        """``libdatacrumbs_client.so`` as programs preload it and the daemon watches it."""
        if self.client_library:
            return Path(self.client_library)
        return Path(sys.prefix, "lib", "datacrumbs", "libdatacrumbs_client.so")


def config_paths() -> tuple[Path, Path]:
    """Where ``system.yaml`` is looked for, first match wins."""
    return Path(sys.prefix, "etc", CONFIG_NAME), Path("/etc", CONFIG_NAME)


def load_system_config(path: Path | None = None) -> SystemConfig:
    """Read ``path``, else the first of `config_paths` that exists, else the defaults.

    Raises `BadInputError` naming file, key and value. As root, a file that somebody else can
    write (owner not root, or group or others may write) is refused.
    """
    if path is None:
        path = next((p for p in config_paths() if p.exists()), None)
        if path is None:
            return SystemConfig()
    return _checked(load_strict(_read(path), SystemConfig, source=str(path)), path)


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if os.geteuid() == 0 and (status.st_uid != 0 or status.st_mode & 0o022):
                raise BadInputError(
                    f"{path}: owned by uid {status.st_uid}, mode "
                    f"{stat.S_IMODE(status.st_mode):04o}: root does not trust it",
                    hint=f"chown root {path} && chmod go-w {path}",
                )
            return file.read()
    except OSError as error:
        raise BadInputError(
            f"{path}: {error.strerror}",
            hint="give a readable file, or none for the defaults",
        ) from error


def _checked(config: SystemConfig, path: Path) -> SystemConfig:
    for field in re.findall(r"\{([^}]*)\}", config.trace_dir):
        if field not in TRACE_DIR_FIELDS:
            raise BadInputError(
                f"{path}: trace_dir: unknown field {{{field}}}",
                hint=nearest(field, TRACE_DIR_FIELDS),
            )
    try:
        root = config.trace_root(user="u", home="/h", uid=1, run_id="r", host="h")
    except (ValueError, KeyError, IndexError) as error:
        raise BadInputError(f"{path}: trace_dir: {config.trace_dir!r}: {error}") from error
    if config.ring.min_ring_bytes > config.ring.max_ring_bytes:
        raise BadInputError(
            f"{path}: ring.min_ring_bytes: {config.ring.min_ring_bytes} is more than "
            f"ring.max_ring_bytes, {config.ring.max_ring_bytes}",
            hint="give both, the first no larger than the second",
        )
    if not root.is_absolute():
        raise BadInputError(
            f"{path}: trace_dir: {config.trace_dir!r} is not absolute",
            hint="start it with / or {home}",
        )
    return config


def dump(config: SystemConfig) -> str:
    """The configuration as YAML, for ``datacrumbs_doctor`` and for tests."""
    plain: dict[str, Any] = msgspec.to_builtins(config)
    return yaml.safe_dump(plain, sort_keys=False)
