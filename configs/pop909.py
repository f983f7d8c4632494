"""A small model for a folder of piano pieces such as POP909, on two CPU cores or any GPU.

    python train.py configs/pop909.py --data MIDI_DIR --workdir runs/pop909

2.5 M tokens, about 15 minutes on two CPU cores.
"""

from midigen_jax.config import Config, Data, Memory, Model, Train


def config() -> Config:
    return Config(
        model=Model(layers=4, width=256, heads=4, ff_width=1024, activation="relu2", dropout=0.0),
        memory=Memory(xl=256, knn=8192, knn_layer=3, top_k=16),
        data=Data(lanes=8, segment=256),
        train=Train(
            steps=1200, learning_rate=2e-3, warmup=100, validate_every=300, save_every=300, validation_songs=20
        ),
    )
