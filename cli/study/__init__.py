"""``i2p study``: train one small student under many settings to measure what guidance is worth.

`arms` lists what is compared, `plan` makes runs of it, `worker` does one run in a process of its own, `report` puts the
numbers side by side.
"""
