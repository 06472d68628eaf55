"""The report: one value that holds an audit's result, and its renderings.

`model.Report` is the value; `text`, `html`, `gallery`, `png` and `to_json` render it; `folder` writes all of them,
`read` reads them back, `gate` compares them with a limit, and `purge` deletes what is personal in them. Public images
and their truth are in the `Report` only; nothing here sees the attack or the network.
"""
