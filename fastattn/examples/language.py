"""Language: words that translate each other, and texts told apart by attention pooling.

`fastattn.examples.translation` learns an alignment from pairs of sentences alone (generated numbers
in English and German); `fastattn.examples.docstrings` classifies the docstrings of scikit-learn
(real text). Both say how.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import fastattn
from fastattn.examples import docstrings, translation
from fastattn.examples.report import Report, name_axes, needed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fastattn.examples.docstrings import Bags, Texts
    from fastattn.examples.translation import Sentence

PAIRS, HELD_OUT, SLOPE = 20, 300, 0.25
_SHOWN = 321_456
_SHOWN_WORDS = 14


class Reading(NamedTuple):
    """A text, the part of the library it is from, and what each part's question reads in it."""

    words: list[str]
    part: str
    weights: np.ndarray


@dataclass(frozen=True)
class LanguageReport(Report):
    """What the example found.

    Attributes
    ----------
    alignment : dict
        Share of held-out German words that attend most to the English word they translate: by
        position alone, learned without ALiBi and with it.
    accuracy : dict
        Share of held-out docstrings assigned to the right part of scikit-learn, by the pooling;
        and by TF-IDF without any pooling, for comparison.
    gain : tuple (mean, standard error)
        Accuracy of attention pooling less that of mean pooling, with files as the sample.
    """

    alignment: dict[str, float]
    accuracy: dict[str, float]
    gain: tuple[float, float]
    texts: int
    files: int
    library: str
    _translated: tuple[Sentence, np.ndarray]
    _asked: Reading

    def lines(self) -> dict[str, str]:
        """Return what was found, in words."""
        alignment, accuracy = self.alignment, self.accuracy
        return {
            "data": f"generated: {PAIRS} numbers in English and German to learn from, {HELD_OUT} "
            "others to align",
            "alignment": f"{alignment['with ALiBi']:.1%} of words find their translation, "
            f"{alignment['without ALiBi']:.1%} without ALiBi (equal words look alike), "
            f"{alignment['diagonal']:.1%} by position alone",
            "data too": f"real: {self.texts} docstrings of {self.library}, {self.files} files in "
            f"{docstrings.FOLDS} folds, {len(docstrings.PARTS)} parts",
            "accuracy": f"{accuracy['attention pooling']:.3f} attention pooling, "
            f"{accuracy['mean pooling']:.3f} mean pooling, a gain of {self.gain[0]:.3f} ± "
            f"{self.gain[1]:.3f}; {accuracy['TF-IDF']:.3f} TF-IDF without vectors",
        }

    def figures(self) -> dict[str, Figure]:
        """Draw an alignment, and what the questions of the classes read in a text."""
        from fastattn.plot import AttentionDisplay

        pair, weights = self._translated
        aligned = AttentionDisplay.from_weights(
            weights,
            query_labels=pair.german,
            key_labels=pair.english,
            title=f"{_SHOWN:,}: learned from {PAIRS} pairs",
        )
        name_axes(aligned, "German word", "English word")
        words, part, asked = self._asked
        pooled = AttentionDisplay.from_weights(
            asked,
            query_labels=[f"{name}?" for name in docstrings.PARTS],
            key_labels=words,
            title=f"What each question reads in a docstring of {part}",
        )
        name_axes(pooled, "question", "word")
        return {"language-alignment": aligned.figure_, "language-pooling": pooled.figure_}


def run_language(threads: int | None = None, backend: str | None = None) -> LanguageReport:
    """Align words with their translations, and classify docstrings.

    Parameters
    ----------
    threads, backend
        As for `fastattn.attention_varlen`.

    Returns
    -------
    LanguageReport
        Alignment accuracy against the known one, held-out accuracy of the classifier.

    Raises
    ------
    JobError
        When scikit-learn is missing.
    """
    needed("sklearn", "the texts are scikit-learn's docstrings, and its classifier judges them")
    import sklearn
    from threadpoolctl import threadpool_limits  # which scikit-learn brings

    machine = {"threads": threads, "backend": backend}
    alignment, translated = _translate(machine)
    texts = docstrings.read()
    with threadpool_limits(1, "blas"):  # many small problems, for which threads only wait
        right, asked = _classify(texts, machine)
    return LanguageReport(
        alignment=alignment,
        accuracy={way: float(hits.mean()) for way, hits in right.items()},
        gain=_over_files(texts, right["attention pooling"] - right["mean pooling"]),
        texts=len(texts.words),
        files=int(texts.file.max() + 1),
        library=f"scikit-learn {sklearn.__version__}",
        _translated=translated,
        _asked=asked,
    )


def _translate(machine: dict[str, Any]) -> tuple[dict[str, float], tuple[Sentence, np.ndarray]]:
    learning, judging = translation.sentences(PAIRS, 0), translation.sentences(HELD_OUT, 1)
    found = {"diagonal": [translation.diagonal(pair) for pair in judging]}
    for way, slope in (("without ALiBi", 0.0), ("with ALiBi", SLOPE)):
        known = translation.learn(learning, slope=slope, **machine)
        found[way] = [translation.align(pair, known, slope=slope, **machine) for pair in judging]
    shown = translation.write_out(_SHOWN)
    weights = translation.align(shown, known, slope=SLOPE, **machine)
    shares = {way: translation.accuracy(judging, weights) for way, weights in found.items()}
    return shares, (shown, weights)


def _classify(texts: Texts, machine: dict[str, Any]) -> tuple[dict[str, np.ndarray], Reading]:
    """Hold out each fold in turn: which texts are assigned rightly, 0 or 1, by which way."""
    dealt = docstrings.folds(texts)
    right = {way: np.zeros(len(dealt)) for way in ("attention pooling", "mean pooling", "TF-IDF")}
    for fold in range(docstrings.FOLDS):
        train, test = dealt != fold, dealt == fold
        bags = docstrings.word_vectors(texts, train)

        nothing = np.zeros((1, docstrings.FEATURES))
        mean = docstrings.pool(bags, nothing, 0.0, **machine).reshape(len(dealt), -1)
        questions = _fit(mean[train], texts.part[train]).coef_
        questions /= np.linalg.norm(questions, axis=1, keepdims=True)
        attended = docstrings.pool(bags, questions, docstrings.SCALE, **machine)

        vectors = (attended.reshape(len(dealt), -1), mean, bags.tfidf)
        for way, described in zip(right, vectors, strict=True):
            fitted = _fit(described[train], texts.part[train])
            right[way][test] = fitted.predict(described[test]) == texts.part[test]
    clear = (right["attention pooling"] > right["mean pooling"]) & test
    return right, _reading(bags, questions, texts, clear, machine)


def _fit(vectors: Any, part: np.ndarray) -> Any:
    from sklearn.linear_model import RidgeClassifier

    return RidgeClassifier(alpha=0.1).fit(vectors, part)


def _over_files(texts: Texts, gains: np.ndarray) -> tuple[float, float]:
    """Return the mean gain of a text, and its standard error where files are drawn, not texts."""
    gain = gains.mean()
    of_file = np.bincount(texts.file, gains - gain)
    return float(gain), float(np.sqrt(np.sum(of_file**2)) / len(gains))


def _reading(
    bags: Bags, questions: np.ndarray, texts: Texts, clear: np.ndarray, machine: dict[str, Any]
) -> Reading:
    """Show what the questions read in a short text that the mean does not tell, for the picture."""
    lengths = np.diff(bags.splits)
    text = np.flatnonzero(clear & (lengths >= _SHOWN_WORDS) & (lengths < 2 * _SHOWN_WORDS))[0]
    places = bags.places[bags.splits[text] : bags.splits[text + 1]]
    words = bags.vectors[places]
    _, weights = fastattn.attention(
        questions,
        words,
        words,
        similarity="dot",
        scale=docstrings.SCALE,
        return_weights=True,
        **machine,
    )
    shown = [bags.words[place] for place in places]
    return Reading(shown, docstrings.PARTS[texts.part[text]], weights)
