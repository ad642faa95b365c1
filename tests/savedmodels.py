"""SavedModels for tests, good and bad; a script, as TensorFlow is for other processes only.

``python -P savedmodels.py FOLDER`` writes one folder each, and ``reference.npz`` with what Keras
gives by itself for some patches.
"""

from __future__ import annotations

import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

SIDE = 224


def network():
    pixels = keras.Input((SIDE, SIDE, 3))
    x = keras.layers.Conv2D(8, 16, strides=16, activation="gelu")(pixels)
    x = keras.layers.LayerNormalization()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(pixels, keras.layers.Dense(384)(x))


class Module(tf.Module):
    """A function as a signature, or as none."""

    def __init__(self, function, *, shape=(None, SIDE, SIDE, 3)):
        super().__init__()
        self.call = tf.function(function, input_signature=[tf.TensorSpec(shape, tf.float32)])


def save(folder, function, *, signature="serving_default", **options):
    module = Module(function, **options)
    tf.saved_model.save(module, folder, signatures={signature: module.call})


def averages(x):
    return tf.repeat(tf.reduce_mean(x, axis=(1, 2)), 128, axis=1)


def reading(x):
    text = tf.io.read_file("/etc/hostname")
    return averages(x) + tf.cast(tf.strings.length(text), tf.float32)


def main(folder):
    keras.utils.set_random_seed(0)
    good = network()
    good.export(folder / "good", verbose=False)
    save(folder / "narrow", lambda x: averages(x)[:, 1:])
    save(folder / "small", averages, shape=(None, 96, 96, 3))
    save(folder / "training", averages, signature="training")
    save(folder / "unnamed", lambda x: {"embedding": averages(x)})
    save(folder / "one", averages, shape=(1, SIDE, SIDE, 3))
    save(folder / "reading", reading)
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (40, SIDE, SIDE, 3), np.uint8)
    large = rng.integers(0, 256, (3, 256, 256, 3), np.uint8)
    resized = [
        Image.fromarray(each).resize((SIDE, SIDE), Image.Resampling.BILINEAR) for each in large
    ]
    told = {}
    for name, pixels in (("patches", patches), ("large", np.stack(resized))):
        told[f"{name}_vectors"] = good(tf.cast(pixels, tf.float32) / 255).numpy()
    np.savez(folder / "reference.npz", patches=patches, large=large, **told)


if __name__ == "__main__":
    tf.config.set_visible_devices([], "GPU")
    main(Path(sys.argv[1]))
