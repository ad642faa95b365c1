"""A SavedModel of Path Foundation's size and signature, with weights drawn at random.

Run as a script, as TensorFlow is for processes of its own:

- ``python -P savedmodel.py make FOLDER LAYERS`` writes it; Path Foundation has 12 layers;
- ``python -P savedmodel.py time FOLDER PIXELS VECTORS THREADS`` prints the seconds that patches
  (npy, uint8) take, in memory, in batches of 16, with nothing around them, and writes their vectors.

The real weights are handed out on request only; what a forward pass costs does not depend on them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

N_FEATURES, N_HEADS, DEPTH, SIDE, TOKEN, BATCH = 384, 6, 12, 224, 16, 16


def make(folder: str, depth: int) -> None:
    """Write a ViT-S/16: ``serving_default``, 224 × 224 × 3 float32 to ``output_0``, 384."""
    import keras
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    keras.utils.set_random_seed(0)
    layers = keras.layers
    n_tokens = (SIDE // TOKEN) ** 2
    pixels = keras.Input((SIDE, SIDE, 3))
    x = layers.Conv2D(N_FEATURES, TOKEN, strides=TOKEN)(pixels)
    x = layers.Reshape((n_tokens, N_FEATURES))(x)
    for _ in range(depth):
        seen = layers.LayerNormalization(epsilon=1e-6)(x)
        x = x + layers.MultiHeadAttention(N_HEADS, N_FEATURES // N_HEADS)(seen, seen)
        seen = layers.LayerNormalization(epsilon=1e-6)(x)
        seen = layers.Dense(4 * N_FEATURES, activation="gelu")(seen)
        x = x + layers.Dense(N_FEATURES)(seen)
    vectors = layers.GlobalAveragePooling1D()(layers.LayerNormalization(epsilon=1e-6)(x))
    keras.Model(pixels, vectors).export(folder, verbose=False)


def seconds(folder: str, pixels_file: str, vectors_file: str, threads: int) -> float:
    """Time the bare forward passes."""
    import numpy as np
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    model = tf.saved_model.load(folder)
    forward = model.signatures["serving_default"]
    (name,) = forward.structured_input_signature[1]
    pixels = np.load(pixels_file) / np.float32(255)
    forward(**{name: tf.constant(pixels[:BATCH])})
    vectors = []
    began = time.perf_counter()
    for start in range(0, len(pixels), BATCH):
        batch = tf.constant(pixels[start : start + BATCH])
        vectors.append(forward(**{name: batch})["output_0"].numpy())
    took = time.perf_counter() - began
    np.save(vectors_file, np.concatenate(vectors))
    return took


def in_a_process(*words: object) -> str:
    """Run this script; give what it printed."""
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [sys.executable, "-P", __file__, *map(str, words)]
    done = subprocess.run(command, env=hidden, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2], int(sys.argv[3]))
    else:
        print(seconds(*sys.argv[2:5], int(sys.argv[5])))
