"""Verb `explain`: where a label comes from. `trace` finds and recounts, `show` and `page` say it.

Knows no model and no sampling: only what is on disk.
"""
