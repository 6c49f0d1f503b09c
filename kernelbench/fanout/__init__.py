"""Many machines: a suite in shards, each a `kernelbench run` that somebody else's scheduler starts.

What was asked, the source as it was then, and what every shard found lie in one folder, which all
machines see. Nothing here measures, and nothing here is needed to measure.
"""
