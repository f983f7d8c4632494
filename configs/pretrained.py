"""The model that the project ships: pop songs, lieder, string quartets and game music, instruments kept apart.

midigen encode MUSIC --tracks multi --out corpora/mixture
python train.py configs/pretrained.py --data corpora/mixture --workdir runs/pretrained
"""

from midigen_jax.config import Config, Data, Memory, Model, Train


def config() -> Config:
    return Config(
        model=Model(layers=4, width=256, heads=4, ff_width=1024, activation="relu2"),
        memory=Memory(xl=256, knn=8192, knn_layer=3, top_k=16),
        data=Data(lanes=8, segment=128, transpose=5, modulate=0.1, mixture="freedoom=3"),
        train=Train(
            steps=2400, learning_rate=2e-3, warmup=200, validate_every=600, save_every=600, validation_songs=40
        ),
    )
