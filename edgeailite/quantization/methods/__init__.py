"""Post-training methods, training methods, mixed precision.

Importing this package registers the post-training methods; see :func:`post_training_method`.
"""

from edgeailite.quantization.methods.activation_ranges import search_activation_ranges
from edgeailite.quantization.methods.analytic_bias_correction import correct_biases_analytically
from edgeailite.quantization.methods.batch_norm import reestimate_batch_norms
from edgeailite.quantization.methods.bias_absorption import absorb_biases
from edgeailite.quantization.methods.bias_correction import correct_biases
from edgeailite.quantization.methods.block_tuning import tune_blocks
from edgeailite.quantization.methods.equalization import equalize
from edgeailite.quantization.methods.gains import MethodGain, render_gains
from edgeailite.quantization.methods.least_squares import fit_layers
from edgeailite.quantization.methods.post_training import (
    PLAIN,
    QUALITIES,
    methods_named,
    post_training,
)
from edgeailite.quantization.methods.registry import METHODS, post_training_method
from edgeailite.quantization.methods.training import LearnedRanges, TrainingMethods
from edgeailite.quantization.methods.weight_clipping import constrain_weights
from edgeailite.quantization.methods.weight_ranges import search_weight_ranges

__all__ = [
    "METHODS",
    "PLAIN",
    "QUALITIES",
    "LearnedRanges",
    "MethodGain",
    "TrainingMethods",
    "absorb_biases",
    "constrain_weights",
    "correct_biases",
    "correct_biases_analytically",
    "equalize",
    "fit_layers",
    "methods_named",
    "post_training",
    "post_training_method",
    "reestimate_batch_norms",
    "render_gains",
    "search_activation_ranges",
    "search_weight_ranges",
    "tune_blocks",
]
