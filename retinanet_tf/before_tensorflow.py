"""What TensorFlow reads once, at its import: `retinanet_tf` imports this module first.

TensorFlow's own default leaves oneDNN off on CPUs without AVX-512 VNNI. There convolutions are slower, and grouped ones
(ResNeXt) have no gradient at all. Whoever imports TensorFlow before `retinanet_tf`, or sets the variable, decides.
"""

import os

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
