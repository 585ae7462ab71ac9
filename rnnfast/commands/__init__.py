"""The command line of rnnfast: one module for each group of commands, and shared modules.

`info`, `bench`, `text`, `series` and `export` hold the commands: ``configure(parser)`` adds the options and names the
function that runs the command and returns the exit status. `tables` and `times` read the files of `series`. `program`
is shared by the commands and the examples, and `engines` and `timing` by ``rnnfast bench`` and the scripts in
``benchmarks/``.
"""
