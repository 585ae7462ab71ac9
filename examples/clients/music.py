"""madmom: beats, bars, onsets and notes in music, by RNNs, LSTMs and GRUs that run step by step in NumPy.

    pip install rnnfast scipy cython 'setuptools<80' && pip install --no-build-isolation madmom
    python examples/clients/music.py

The models come with the package. Most are ensembles of eight networks, whose recurrent layers `convert` replaces.
"""

# ruff: noqa: E402

import collections
import collections.abc
import copy
import functools
import warnings

import numpy as np
from comparison import compare

import rnnfast

# Python and NumPy have dropped these names since madmom 0.16.1 was released, in 2018.
collections.MutableSequence = collections.abc.MutableSequence
vars(np).update(float=float, int=int)
warnings.filterwarnings("ignore", "Please update your GRU models")

from madmom.audio.signal import Signal
from madmom.features.beats import DBNBeatTrackingProcessor, RNNBeatProcessor
from madmom.features.downbeats import RNNBarProcessor, RNNDownBeatProcessor
from madmom.features.notes import RNNPianoNoteProcessor
from madmom.features.onsets import RNNOnsetProcessor
from madmom.ml.nn import NeuralNetwork, layers
from madmom.processors import Processor, SequentialProcessor

RATE, SECONDS = 44_100, 30


class Recurrent:
    """Takes the place of a layer of madmom; with reset=False, it continues from the last call."""

    def __init__(self, layer):
        self.layer, self.state = layer, None

    def activate(self, data, reset=True):
        y, self.state = self.layer(data, None if reset else self.state)
        return y

    __call__ = activate

    def reset(self):
        self.state = None


def arrays(layer, suffix=""):
    """The parameters of one direction, under rnnfast's names."""
    states = {"h0": layer.init}
    if isinstance(layer, layers.LSTMLayer):
        gates = [layer.input_gate, layer.forget_gate, layer.cell, layer.output_gate]
        states["c0"] = layer.cell_init
    elif isinstance(layer, layers.GRULayer):
        gates = [layer.reset_gate, layer.update_gate, layer.cell]
    else:
        gates = [layer]
    weights = {
        "weight_ih": np.concatenate([gate.weights.T for gate in gates]),
        "weight_hh": np.concatenate([gate.recurrent_weights.T for gate in gates]),
        "bias_ih": np.concatenate([gate.bias for gate in gates]),
    }
    if isinstance(layer, layers.GRULayer):
        # madmom's update gate is 1 where PyTorch's is 0. As 1 - sigmoid(a) = sigmoid(-a), negate its parameters.
        H = layer.init.size
        for array in weights.values():
            array[H : 2 * H] *= -1
    weights["bias_hh"] = np.zeros_like(weights["bias_ih"])
    peepholes = [gate.peephole_weights for gate in gates if getattr(gate, "peephole_weights", None) is not None]
    if peepholes:
        weights["peephole"] = np.stack(peepholes)
    return {f"{name}_l0{suffix}": array for name, array in {**weights, **states}.items()}


def convert(layer):
    """Return an equal layer that runs on rnnfast, or the same layer if it is not a recurrent one."""
    if isinstance(layer, layers.BidirectionalLayer):
        parameters = {**arrays(layer.fwd_layer), **arrays(layer.bwd_layer, "_reverse")}
    elif isinstance(layer, layers.RecurrentLayer):
        parameters = arrays(layer)
    else:
        return layer
    return Recurrent(rnnfast.from_state_dict(parameters))


def networks(processor):
    """The neural networks that are parts of a processor."""
    if isinstance(processor, NeuralNetwork):
        yield processor
    for part in getattr(processor, "processors", vars(processor).values()):
        if isinstance(part, Processor):
            yield from networks(part)


def main():
    rng, time = np.random.default_rng(0), np.arange(RATE * SECONDS) / RATE
    drum = np.where(time % 2 < 0.5, 1, 0.5) * np.exp(-60 * (time % 0.5))  # 120 beats a minute, every fourth one louder
    sound = Signal((20_000 * drum * rng.uniform(-1, 1, time.size)).astype(np.int16), RATE)
    features, ensemble = RNNBeatProcessor()
    percussion = rng.uniform(size=(2 * SECONDS, 180)).astype(np.float32)  # random features of each beat
    tracker = DBNBeatTrackingProcessor(fps=100)
    programs = {
        "networks for beats": (ensemble, features(sound)),
        "activations of beats": (RNNBeatProcessor(), sound),
        "activations of beats, models for live music": (RNNBeatProcessor(online=True), sound),
        "times of beats": (SequentialProcessor([RNNBeatProcessor(), tracker]), sound),
        "activations of downbeats": (RNNDownBeatProcessor(), sound),
        "networks for bars": (RNNBarProcessor().perc_nn, percussion),
        "activations of onsets": (RNNOnsetProcessor(), sound),
        "activations of notes": (RNNPianoNoteProcessor(), sound),
    }
    for what, (theirs, given) in programs.items():
        ours = copy.deepcopy(theirs)
        for network in networks(ours):
            network.layers = [convert(layer) for layer in network.layers]
        compare(
            what,
            functools.partial(theirs, given),
            functools.partial(ours, given),
            lambda a, b: np.nanmax(np.abs(a - b)),
        )


if __name__ == "__main__":
    main()
