"""The large model of MIDIGen (its chapter 7), with this project's masks, attention scale and search per head.

    python train.py configs/midigen.py --data CORPUS_OR_MIDI_DIR --workdir runs/midigen

26 M parameters; for one GPU. The original was trained for 400,000 steps on the Lakh MIDI dataset.
"""

from midigen_jax.config import Config, Data, Memory, Model, Train


def config() -> Config:
    return Config(
        model=Model(
            layers=8,
            width=512,
            heads=8,
            ff_width=2048,
            activation="gelu",
            norm="layer",
            positions="t5",
            qk_norm=False,
            biases=True,
            tied=False,
            pitches=False,
            previous_tokens=0,
            dropout=0.2,
            dtype="bfloat16",
        ),
        memory=Memory(xl=256, knn=8192, retrieval="attention", knn_layer=5, mixing="gate", top_k=16, dtype="bfloat16"),
        data=Data(lanes=32, segment=256),
        train=Train(
            steps=100_000,
            learning_rate=3e-4,
            warmup=1000,
            weight_decay=1e-3,
            validate_every=2000,
            save_every=2000,
            validation_songs=200,
        ),
    )
