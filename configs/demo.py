"""The small model of `make demo`: Bach's chorales and other scores of the music21 package.

    python train.py configs/demo.py --data runs/demo/midi --workdir runs/demo

0.7 M tokens, three to four minutes on two CPU cores.
"""

from midigen_jax.config import Config, Data, Memory, Model, Train


def config() -> Config:
    return Config(
        model=Model(layers=4, width=256, heads=4, ff_width=1024, activation="relu2", dropout=0.1),
        memory=Memory(xl=256, knn=2048, knn_layer=3, top_k=8),
        # Short segments: more updates per token, and half as many attention scores.
        data=Data(lanes=8, segment=128),
        train=Train(steps=700, learning_rate=2e-3, warmup=50, validate_every=350, save_every=350, keep=2),
    )
