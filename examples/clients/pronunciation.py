"""g2p_en: pronunciations of English words, by a GRU encoder and decoder that run step by step in NumPy.

    pip install rnnfast g2p_en && python examples/clients/pronunciation.py

Its dictionaries and its tagger, which it would download, are left out, so that every word goes through the network.
"""

import types

import g2p_en.g2p as program
import numpy as np
from comparison import compare

import rnnfast

NAMES = ("weight", "bias")
TEXT = "The quick brown fox jumps over the lazy dog while an activationist rehearses unpronounceable neologisms"


class FastG2p(program.G2p):
    """G2p with rnnfast's GRUs."""

    def load_variables(self):
        super().load_variables()
        self.layers = {}
        for side in ("enc", "dec"):
            own = {f"{kind}_{end}": self.variables[f"{side}_{kind[0]}_{end}"] for kind in NAMES for end in ("ih", "hh")}
            self.layers[id(getattr(self, f"{side}_w_ih"))] = layer = rnnfast.GRU.from_state_dict(own, batch_first=True)
            layer.freeze()

    def gru(self, x, _steps, w_ih, *_, h0):
        return self.layers[id(w_ih)](x, h0[np.newaxis])[0]

    def grucell(self, x, h, w_ih, *_):
        return self.layers[id(w_ih)](x[np.newaxis], h[np.newaxis])[1][0]


def main():
    program.cmudict = types.SimpleNamespace(dict=dict)
    program.pos_tag = lambda words: [(word, "") for word in words]
    theirs, ours = program.G2p(), FastG2p()
    if theirs(TEXT) != ours(TEXT):
        raise SystemExit("the pronunciations differ")
    word, start = theirs.encode("unpronounceable"), np.zeros((1, 256), np.float32)

    def encode(of):
        return of.gru(word, word.shape[1], of.enc_w_ih, of.enc_w_hh, of.enc_b_ih, of.enc_b_hh, h0=start)

    compare("encoder, 16 letters", lambda: encode(theirs), lambda: encode(ours), lambda a, b: abs(a - b).max())
    compare("15 words", lambda: theirs(TEXT), lambda: ours(TEXT), lambda a, b: float(a != b))


if __name__ == "__main__":
    main()
