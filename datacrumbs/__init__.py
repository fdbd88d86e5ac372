"""DataCrumbs: where a job's I/O time went, and why."""

__version__ = "0.1.0"
