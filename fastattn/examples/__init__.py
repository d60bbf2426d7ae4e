"""Small programs, each a whole use of fastattn that ends with a number and a picture.

Every module NAME has ``run_NAME(*, seed=0, threads=None, backend=None)``, which returns a `Report`:
`str` of it is for people, `as_dict` for programs, `save` writes its pictures. The article's numbers
are its own, and take no seed.
"""

EXAMPLES = {
    "article": "the worked example of the article that fastattn began from, with the right numbers",
    "digits": "classify the handwritten digits of scikit-learn by cosine attention",
    "language": "align words with their translations, classify docstrings by attention pooling",
    "recommender": "find held-out items by target attention over ragged histories",
    "speech": "follow noisy speech by windowed and monotonic attention",
    "tickets": "hand out review hours to tickets, under caps and in whole hours",
}
