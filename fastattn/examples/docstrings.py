"""Which part of scikit-learn does a docstring document? Attention pooling against mean pooling.

Mean pooling makes one vector of a text, and the words that tell are lost among those that do not.
Attention pooling asks the words a question per class (label-wise attention: Mullenbach et al.,
2018), and each question gets its own answer. The questions are the directions in which a linear
classifier on mean vectors tells the classes apart; with scale 0 every answer is the mean again.

The data are real: the docstrings in the source of the scikit-learn that is installed, without the
names of its parts, which would give the answer away. Files, not docstrings, are held out, since
the docstrings of a file repeat each other. Word vectors are learned on the training texts alone.
The scale was chosen on NumPy's docstrings, where it makes an accuracy of 0.53 into one of 0.58; on
SciPy's, where means do well, it gains nothing to speak of (0.79 and 0.80).
"""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import fastattn

PARTS = (
    "cluster",
    "decomposition",
    "ensemble",
    "linear_model",
    "metrics",
    "model_selection",
    "preprocessing",
)
FEATURES, FOLDS = 48, 5
SCALE = 4.0
_FEWEST_WORDS = 10
_GIVEN_AWAY = {"clusters", "clustering", "ensembles", "metric", "models", "sklearn"} | {
    word for part in PARTS for word in part.split("_")
}


class Texts(NamedTuple):
    """Docstrings as words, with the part of the library and the file that each is from."""

    words: list[list[str]]
    part: np.ndarray
    file: np.ndarray


class Bags(NamedTuple):
    """The same as row numbers of a table of word vectors, end to end."""

    words: list[str]
    vectors: np.ndarray  # (words, FEATURES), of length 1
    tfidf: Any  # (texts, words), sparse: for the classifier to compare with
    places: np.ndarray
    splits: np.ndarray


def read() -> Texts:
    """Read the docstrings of the installed scikit-learn from its source, importing nothing."""
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    texts: dict[str, tuple[int, str]] = {}  # what several functions share counts once
    for number, part in enumerate(PARTS):
        for path in sorted(Path(spec.origin).with_name(part).glob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    texts.setdefault(ast.get_docstring(node) or "", (number, str(path)))
    words = [re.findall("[a-z]{3,}", text.lower()) for text in texts]
    words = [[word for word in text if word not in _GIVEN_AWAY] for text in words]
    long = [place for place, text in enumerate(words) if len(text) >= _FEWEST_WORDS]
    origins = list(texts.values())
    return Texts(
        [words[place] for place in long],
        np.array([origins[place][0] for place in long]),
        np.unique([origins[place][1] for place in long], return_inverse=True)[1],
    )


def folds(texts: Texts, seed: int) -> np.ndarray:
    """Return the fold of each text: files are dealt out."""
    files = texts.file.max() + 1
    dealt = np.random.default_rng(seed).permutation(files) % FOLDS
    fold: np.ndarray = dealt[texts.file]
    return fold


def word_vectors(texts: Texts, training: np.ndarray) -> Bags:
    """Describe words by the training texts that they stand in (latent semantic analysis)."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    counter = TfidfVectorizer(analyzer=list, min_df=3, sublinear_tf=True)
    counter.fit([text for text, known in zip(texts.words, training, strict=True) if known])
    tfidf = counter.transform(texts.words)
    reduction = TruncatedSVD(FEATURES, algorithm="arpack", random_state=0).fit(tfidf[training])
    vectors = reduction.components_.T * counter.idf_[:, None]
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    places = [
        [counter.vocabulary_[w] for w in text if w in counter.vocabulary_] for text in texts.words
    ]
    return Bags(
        list(counter.get_feature_names_out()),
        np.ascontiguousarray(vectors, np.float32),  # a table's rows are read one by one
        tfidf,
        np.concatenate(places).astype(int),
        np.cumsum([0, *map(len, places)]),
    )


def places_of(bags: Bags, text: int) -> np.ndarray:
    """Return the row numbers of a text's words."""
    return bags.places[bags.splits[text] : bags.splits[text + 1]]


def pool(bags: Bags, questions: np.ndarray, scale: float, **machine: Any) -> np.ndarray:
    """Let each question attend to the words of every text: (texts, questions, FEATURES)."""
    texts = len(bags.splits) - 1
    answers = fastattn.attention_varlen(
        np.tile(questions.astype(np.float32), (texts, 1)),
        bags.vectors,
        bags.vectors,
        query_splits=np.arange(texts + 1) * len(questions),
        key_splits=bags.splits,
        key_indices=bags.places,
        similarity="dot",
        scale=scale,
        **machine,
    )
    by_text: np.ndarray = answers.reshape(texts, len(questions), -1)
    return by_text


def as_module(questions: np.ndarray, classifier: Any) -> fastattn.MultiHeadAttention:
    """Make one module of all that was learned: heads ask the questions, the output classifies.

    Its query is the bias, whatever it is given; its heads see the words as they are; the scores of
    the classes are the first features of its output.
    """
    heads, features = questions.shape
    size = heads * features
    as_they_are = np.tile(np.eye(features), (heads, 1))
    output, bias = np.zeros((size, size)), np.zeros(size)
    output[:heads], bias[:heads] = classifier.coef_, classifier.intercept_
    return fastattn.MultiHeadAttention.from_arrays(
        heads,
        query_weight=np.zeros((size, size)),
        query_bias=SCALE * features**0.5 * questions.ravel(),  # the module divides by the root
        key_weight=as_they_are,
        value_weight=as_they_are,
        output_weight=output,
        output_bias=bias,
    )
