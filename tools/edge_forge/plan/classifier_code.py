"""The code behind each step of a classifier's plan: part of a step's key in the cache, beside inputs and settings.

A file of its own because training, exports and packages share the table.
"""

from __future__ import annotations

from edge_forge.plan.step_runner import Code

_TORCH = ("torch", "transformers", "tokenizers")
_QUESTIONS = ("numpy", "scipy", "scikit-learn")
_RUNTIME = ("onnx", "onnxruntime", "numpy", "tokenizers")
# Entry modules of a step and the distributions whose versions change its result.
CODE: Code = {
    "data": (("edge_forge.data.classifier_rows", "edge_forge.data.slot_rows", "edge_forge.data.answer_rows"), ()),
    "tokens": (("edge_agent.tasks.tokens",), ("tokenizers",)),
    "windows": (("edge_forge.train.window_rows",), ("tokenizers",)),
    "base": (("edge_forge.models.base_check",), (*_TORCH, "safetensors")),
    "train": (("edge_forge.train.classifier_job",), (*_TORCH, "peft", "accelerate")),
    "cut": (("edge_forge.models.smaller",), _TORCH),
    "distill": (("edge_forge.train.distillation_job",), (*_TORCH, "peft", "accelerate")),
    "evaluate": (
        (
            "edge_forge.evaluate.predict",
            "edge_forge.evaluate.classifier_metrics",
            "edge_forge.evaluate.span_scores",
            "edge_forge.evaluate.answer_scores",
        ),
        _TORCH,
    ),
    "trace-base": (("edge_forge.export.onnx.export_graphs",), (*_TORCH, *_RUNTIME, "onnxscript")),
    "export-base": (("edge_forge.export.onnx.export_graphs",), (*_TORCH, *_RUNTIME, "onnxscript")),
    "export-merged": (("edge_forge.export.onnx.export_graphs",), (*_TORCH, *_RUNTIME, "onnxscript")),
    "quantize": (("edge_forge.export.onnx.quantize",), _RUNTIME),
    "tensorrt-form": (("edge_forge.export.onnx.tensorrt_form",), _RUNTIME),
    "litert-form": (
        ("edge_forge.export.litert",),
        (*_TORCH, *_RUNTIME, "litert-torch", "litert-converter", "ai-edge-litert", "ai-edge-quantizer", "jax"),
    ),
    "choose": (("edge_forge.export.onnx.quantize",), ()),
    "measure": (
        (
            "edge_forge.evaluate.measure_onnx",
            "edge_forge.evaluate.classifier_metrics",
            "edge_forge.evaluate.span_scores",
            "edge_forge.evaluate.answer_scores",
            "edge_agent.backends.onnx",
            "edge_forge.export.onnx.scored",
        ),
        _RUNTIME,
    ),
    "latency": (
        ("edge_forge.evaluate.measure_onnx", "edge_forge.evaluate.paired", "edge_agent.backends.onnx"),
        (*_RUNTIME, "scipy"),
    ),
    "diagnose-weights": (("edge_forge.evaluate.diagnosis",), _TORCH),
    "diagnose": (("edge_forge.evaluate.diagnosis",), (*_TORCH, *_QUESTIONS)),
    "merge": (("edge_forge.train.merged_base",), _TORCH),
    "remembered": (("edge_forge.evaluate.predict", "edge_forge.train.trained_encoder"), _TORCH),
    "forgetting": (("edge_forge.evaluate.forgetting", "edge_forge.train.trained_encoder"), (*_TORCH, *_QUESTIONS)),
    "paired": (
        ("edge_forge.evaluate.paired", "edge_forge.evaluate.span_scores", "edge_forge.evaluate.answer_scores"),
        ("numpy", "scipy"),
    ),
    "probes": (
        (
            "edge_forge.evaluate.measure_onnx",
            "edge_forge.evaluate.probes",
            "edge_agent.backends.onnx",
            "edge_forge.export.onnx.scored",
        ),
        _RUNTIME,
    ),
    "package": (("edge_forge.package.base_reuse", "edge_forge.package.classifier_sources"), ()),
    "trial": (("edge_forge.package.package_trial", "edge_agent.app.packages", "edge_agent.worker.child"), _RUNTIME),
    "sign": (("edge_forge.package.keys",), ()),
}
