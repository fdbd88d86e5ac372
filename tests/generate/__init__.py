"""Traces with known answers: trees of calls first, the events of the trace from them.

`calls` has the trees and what they add up to, `runs` writes them as the trace of one or many
hosts, `causes` makes calls that are slow for a reason, and `bulk` large traces for benchmarks.
"""
