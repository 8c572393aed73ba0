"""This project beside arrays recorded from the reference implementation: ``python -m benchmarks.parity DIR``.

command    the command, in the words and with the exit codes of `i2p`
runner     runs sections, turns what is missing into rows
recorded   reads a folder of recorded files
compare    rows, and the table of tolerances
models     models of the recorded sizes, with the recorded weights
weights    the closed formula for the weights of the full-size models
report     the table, as text and as Markdown
sections   what is compared: a module for each recorded file
"""
