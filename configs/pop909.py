"""A small model for a folder of piano pieces such as POP909, on two CPU cores or any GPU.

    python train.py configs/pop909.py --data MIDI_DIR --workdir runs/pop909

2.5 M tokens, a quarter of an hour on two CPU cores.
"""

from midigen_jax.config import Config, Data, Memory, Model, Train


def config() -> Config:
    return Config(
        model=Model(layers=4, width=256, heads=4, ff_width=1024, activation="relu2"),
        memory=Memory(xl=256, knn=8192, knn_layer=3, top_k=16),
        # Short segments: more updates per token, and fewer attention scores.
        data=Data(lanes=8, segment=128, modulate=0.25),
        train=Train(
            steps=2400, learning_rate=2e-3, warmup=200, validate_every=600, save_every=600, validation_songs=20
        ),
    )
