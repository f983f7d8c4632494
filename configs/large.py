"""A large modern model for one GPU of 80 GB or more; each lane's kNN memory holds 65,536 tokens.

    python train.py configs/large.py --data CORPUS_OR_MIDI_DIR --workdir runs/large

88 M parameters. Nobody has trained it yet. Its kNN memory has context keys alone: alignment compares every token with
every slot, one token after the other, which was not measured on a GPU.
"""

from midigen_jax.config import Config, Data, Memory, Model, Train


def config() -> Config:
    return Config(
        model=Model(layers=12, width=768, heads=12, ff_width=3072, dropout=0.1, dtype="bfloat16"),
        memory=Memory(xl=2048, knn=65536, retrieval="context", knn_layer=9, top_k=32, dtype="bfloat16"),
        data=Data(lanes=8, segment=2048),
        train=Train(
            steps=100_000,
            learning_rate=6e-4,
            warmup=2000,
            weight_decay=0.1,
            remat=True,
            validate_every=2000,
            save_every=2000,
            validation_songs=200,
        ),
    )
