"""The command line of rnnfast: one module for each group of commands, and shared modules.

`info`, `bench`, `text` and `series` hold the commands: ``configure(parser)`` adds the options and names the function
that runs the command and returns the exit status. `program` is shared by the commands and the examples, and
`engines` and `timing` by ``rnnfast bench`` and the scripts in ``benchmarks/``.
"""
