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
_SHOWN_WORDS = 18


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
    module_agrees : tuple of int (texts, of so many)
        Docstrings of one fold to which questions and classifier, as the weights of one
        `fastattn.MultiHeadAttention`, assign the same part.
    """

    alignment: dict[str, float]
    accuracy: dict[str, float]
    gain: tuple[float, float]
    module_agrees: tuple[int, int]
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
            "module": "questions and classifier of a fold as one MultiHeadAttention, a head per "
            f"question: the same part for {self.module_agrees[0]} of {self.module_agrees[1]} texts",
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


def run_language(
    *, seed: int = 0, threads: int | None = None, backend: str | None = None
) -> LanguageReport:
    """Align words with their translations, and classify docstrings.

    Parameters
    ----------
    seed : int
        Of the numbers to translate, and of the folds.
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
    alignment, translated = _translate(seed, machine)
    texts = docstrings.read()
    with threadpool_limits(1, "blas"):  # many small problems, for which threads only wait
        right, agrees, asked = _classify(texts, seed, machine)
    return LanguageReport(
        alignment=alignment,
        accuracy={way: float(hits.mean()) for way, hits in right.items()},
        gain=_over_files(texts, right["attention pooling"] - right["mean pooling"]),
        module_agrees=agrees,
        texts=len(texts.words),
        files=int(texts.file.max() + 1),
        library=f"scikit-learn {sklearn.__version__}",
        _translated=translated,
        _asked=asked,
    )


def _translate(
    seed: int, machine: dict[str, Any]
) -> tuple[dict[str, float], tuple[Sentence, np.ndarray]]:
    learning = translation.sentences(PAIRS, 2 * seed)
    judging = translation.sentences(HELD_OUT, 2 * seed + 1)
    found = {"diagonal": [translation.diagonal(pair) for pair in judging]}
    for way, slope in (("without ALiBi", 0.0), ("with ALiBi", SLOPE)):
        known = translation.learn(learning, slope=slope, **machine)
        found[way] = [translation.align(pair, known, slope=slope, **machine) for pair in judging]
    shown = translation.write_out(_SHOWN)
    weights = translation.align(shown, known, slope=SLOPE, **machine)
    shares = {way: translation.accuracy(judging, weights) for way, weights in found.items()}
    return shares, (shown, weights)


def _classify(
    texts: Texts, seed: int, machine: dict[str, Any]
) -> tuple[dict[str, np.ndarray], tuple[int, int], Reading]:
    """Hold out each fold in turn: which texts are assigned rightly, 0 or 1, by which way.

    Of the last fold, also to how many texts one module assigns the same, and what it reads in one.
    """
    dealt = docstrings.folds(texts, seed)
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
        fitted = [_fit(described[train], texts.part[train]) for described in vectors]
        for way, classifier, described in zip(right, fitted, vectors, strict=True):
            right[way][test] = classifier.predict(described[test]) == texts.part[test]
    module = docstrings.as_module(questions, fitted[0])
    answers = [_ask(module, bags, int(text), machine)[0] for text in np.flatnonzero(test)]
    same = np.array(answers) == fitted[0].predict(vectors[0][test])
    clear = (right["attention pooling"] > right["mean pooling"]) & test
    # For the picture: a short text, which attention tells and the mean does not.
    unfit = np.abs(np.diff(bags.splits) - _SHOWN_WORDS) + np.where(clear, 0, 10**9)
    text = int(unfit.argmin())
    words = [bags.words[place] for place in docstrings.places_of(bags, text)]
    part = docstrings.PARTS[texts.part[text]]
    reading = Reading(words, part, _ask(module, bags, text, machine)[1])
    return right, (int(same.sum()), len(same)), reading


def _ask(
    module: fastattn.MultiHeadAttention, bags: Bags, text: int, machine: dict[str, Any]
) -> tuple[int, np.ndarray]:
    """Return the class that a module gives a text, and the weights (questions, words)."""
    words = bags.vectors[docstrings.places_of(bags, text)]
    query = np.zeros((1, module.embed_dim))
    output, weights = module(query, words, return_weights=True, **machine)
    return int(output[0, : module.num_heads].argmax()), weights[:, 0]


def _fit(vectors: Any, part: np.ndarray) -> Any:
    from sklearn.linear_model import RidgeClassifier

    return RidgeClassifier(alpha=0.1).fit(vectors, part)


def _over_files(texts: Texts, gains: np.ndarray) -> tuple[float, float]:
    """Return the mean gain of a text, and its standard error where files are drawn, not texts."""
    gain = gains.mean()
    of_file = np.bincount(texts.file, gains - gain)
    return float(gain), float(np.sqrt(np.sum(of_file**2)) / len(gains))
