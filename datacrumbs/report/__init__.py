"""What people read. Reporters get plain data and a stream; they never compute."""

HTML_TOP = 10_000
"""Files and processes that a page with pictures lists, unless told otherwise."""
