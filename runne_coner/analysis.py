"""What the experiments of the paper look at (Bondarenko 2022, section 4), as functions on arrays and documents.

Statistics:   `wilcoxon_test`, `paired_t_test`, `document_counts`, `f1_scores`, `paired_bootstrap`   (`significance`)
Word spaces:  `load_encoder`, `word_embeddings`, `word_membership`, `count_entity_words`, `project`  (`embeddings`)
              `type_silhouettes`, `silhouette`                                                       (`silhouette`)
Errors:       `error_taxonomy`, `match_spans`, `nesting_of`, `confusion_matrix`, `split_outcomes`,
              `instructive_errors`                                                                   (`taxonomy`)
              `inconsistent_surfaces`                                                                (`consistency`)
              `error_sections`, for `write_report`                                                   (`errors`, `report`)
Models:       `model_sections`, for `write_report`                                                   (`model_spaces`)

Each is defined, and documented with formula and source, in the module named beside it.
"""

from .consistency import inconsistent_surfaces
from .embeddings import WordEmbeddings, count_entity_words, load_encoder, project, word_embeddings, word_membership
from .errors import error_sections
from .model_spaces import model_sections
from .report import write_report
from .significance import Interval, TestResult, document_counts, f1_scores, paired_bootstrap, paired_t_test, wilcoxon_test
from .silhouette import silhouette, type_silhouettes
from .taxonomy import confusion_matrix, error_taxonomy, instructive_errors, match_spans, nesting_of, split_outcomes

__all__ = [
    "Interval",
    "TestResult",
    "WordEmbeddings",
    "confusion_matrix",
    "count_entity_words",
    "document_counts",
    "error_sections",
    "error_taxonomy",
    "f1_scores",
    "inconsistent_surfaces",
    "instructive_errors",
    "load_encoder",
    "match_spans",
    "model_sections",
    "nesting_of",
    "paired_bootstrap",
    "paired_t_test",
    "project",
    "silhouette",
    "split_outcomes",
    "type_silhouettes",
    "wilcoxon_test",
    "word_embeddings",
    "word_membership",
    "write_report",
]
