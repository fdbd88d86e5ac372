"""Clusters, one per Debian suite, for as long as the tests run."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from cluster.bed import NODES, Bed, bed
from cluster.image import SUITES


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One suite after the other, so that only one cluster is up at a time."""
    items.sort(key=_suite_of)


def _suite_of(item: pytest.Item) -> str:
    callspec = getattr(item, "callspec", None)
    return str(callspec.params.get("cluster_of", "")) if callspec else ""


@pytest.fixture(scope="session", params=list(SUITES))
def cluster_of(request: pytest.FixtureRequest) -> Iterator[Bed]:
    """A cluster of each suite in turn."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make namespaces: run the tests as root")
    with bed(request.param) as made:
        yield made


@pytest.fixture
def cluster(cluster_of: Bed) -> Iterator[Bed]:
    """A cluster with nothing on it; afterwards all nodes must be idle, and nothing left."""
    yield cluster_of
    cluster_of.wait_idle()
    for node in NODES:
        cluster_of.wait(lambda node=node: not cluster_of.leftovers(node), f"{node} is clean")
