"""Two-stage fine-tuning of any Hugging Face encoder into a recognizer of nested named entities (Bondarenko 2022).

Importing the package makes the Auto classes of transformers know `CoNERForTokenClassification`, and `pipeline` know the task
`nested-ner`; everything else is imported when it is first asked for.
"""

import importlib

import wrapt

__version__ = "0.1.0"


# transformers itself is lazy: importing it is quick, its Auto classes and pipelines take seconds. They are waited for, so that
# `import runne_coner` stays quick as well. The modules do not register themselves, as saved models carry copies of them.
# A module of ours that itself imports what is waited for is registered when it is complete.


@wrapt.when_imported("transformers.models.auto.configuration_auto")
def _import_configuration(_) -> None:
    importlib.import_module(".configuration", __name__)


@wrapt.when_imported(f"{__name__}.configuration")
def _register_config(ours) -> None:
    from transformers import AutoConfig

    AutoConfig.register(ours.CoNERConfig.model_type, ours.CoNERConfig)


@wrapt.when_imported("transformers.models.auto.modeling_auto")
def _import_modeling(_) -> None:
    importlib.import_module(".modeling", __name__)


@wrapt.when_imported(f"{__name__}.modeling")
def _register_model(ours) -> None:
    from transformers import AutoModelForTokenClassification

    AutoModelForTokenClassification.register(ours.CoNERConfig, ours.CoNERForTokenClassification)


@wrapt.when_imported("transformers.pipelines")
def _import_pipeline(_) -> None:
    importlib.import_module(".pipeline", __name__)


@wrapt.when_imported(f"{__name__}.pipeline")
def _register_pipeline(ours) -> None:
    from transformers.pipelines import PIPELINE_REGISTRY, AutoModelForTokenClassification

    PIPELINE_REGISTRY.register_pipeline(
        ours.TASK, pipeline_class=ours.NestedNerPipeline, pt_model=AutoModelForTokenClassification, type="text"
    )


_LAZY = {
    "CoNERConfig": "configuration",
    "CoNERForTokenClassification": "modeling",
    "EntityEncoder": "modeling",
    "NestedNerPipeline": "pipeline",
    "calibrate": "calibration",
    "BilouViterbiProcessor": "viterbi",
    "SpanDecoder": "decoding",
    "BilouCollator": "collators",
    "EntityCollator": "collators",
    "EntityPairCollator": "collators",
    "Document": "documents",
    "Entity": "documents",
    "read_documents": "documents",
    "write_brat": "documents",
    "write_runne": "documents",
    "resolve_encoder": "encoders",
    "export_onnx": "export",
    "DistanceBasedLogisticLoss": "losses",
    "MultiSimilarityLoss": "metric_losses",
    "NPairsLoss": "metric_losses",
    "SupConLoss": "metric_losses",
    "OutsideSettings": "outside",
    "PairWeighting": "pair_weights",
    "NamedEntityLoss": "losses",
    "NestedNerMetric": "metrics",
    "make_compute_metrics": "metrics",
    "score_documents": "metrics",
    "NerelBuilder": "nerel",
    "load_documents": "nerel",
    "load_entity_types": "nerel",
    "bilou_columns": "outputs",
    "render_html": "outputs",
    "to_document": "outputs",
    "to_spacy": "outputs",
    "type_silhouettes": "silhouette",
    "WindowSettings": "windows",
    "bilou_view": "preprocessing",
    "entity_pair_view": "pairs",
    "entity_view": "preprocessing",
    "load_tokenizer": "preprocessing",
    "ContrastiveTrainer": "contrastive",
    "NestedNerTrainer": "trainers",
    "ContrastiveTrainingArguments": "training_args",
    "NestedNerTrainingArguments": "training_args",
}

__all__ = [*_LAZY]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
