"""The command line of rnnfast: one module for each group of commands, and what they share.

`info`, `bench`, `text` and `series` hold the commands: ``configure(parser)`` adds the options and names the function
that runs the command and returns the exit status. `program` holds what the commands and the examples share as programs,
`engines` and `timing` what ``rnnfast bench`` and the scripts in ``benchmarks/`` share.
"""
