"""What the programs of the gallery share: the option --output, and the style of their pictures."""

import argparse
import contextlib

from rnnfast.commands.program import save_figure


def output(description):
    """Return the path that follows --output on the command line, or None."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output", metavar="FILE", help="picture (needs matplotlib)")
    return parser.parse_args().output


@contextlib.contextmanager
def picture(path, rows=1, columns=2):
    """Give the axes of a figure, which is saved at the end."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.8), layout="constrained")
    axes = figure.subplots(rows, columns)
    yield axes
    for panel in figure.axes:
        panel.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path, dpi=90)
