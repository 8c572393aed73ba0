"""``i2p study``: the same small student trained under many settings, so that one can say what guidance is worth.

`arms` lists what is compared, `plan` makes runs of it, `worker` does one run in a process of its own, `report` puts the
numbers side by side.
"""
