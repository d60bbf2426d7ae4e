"""Small programs, each a whole use of fastattn that ends with a number and a picture.

``fastattn example NAME --out FOLDER`` runs one: seconds of work, the same numbers every time
(``--seed N`` for others), a picture, and a number that means something. Where attention does not
win they say so.

===========  ================================  ===================  ================================
name         what it does                      data                 what comes of it
===========  ================================  ===================  ================================
article      the three steps of the article    its own              weights 0.302, 0.345, 0.353;
             fastattn began from, and ten                           hours 3, 3, 4, and 4, 4, 2 under
             hours shared out                                       a cap
digits       an offline job: images attend to  real                 98.67 % of 450 held-out images
             labelled ones                     (scikit-learn)
recommender  candidates attend to ragged       generated            NDCG@10 0.438 ± 0.009, mean
             histories in an item table                             pooling 0.310; the same for
                                                                    users of one taste, and 0.024
                                                                    more where vectors are wide
language     cross attention learns a          generated; real      100 % of words aligned, 91 %
             dictionary; questions pool        (scikit-learn)       without ALiBi; accuracy 0.682,
             docstrings, as heads of a module                       mean pooling 0.592, TF-IDF 0.651
             too
speech       frames in a window, a transcript  generated            21.2 % of frames wrong, moving
             followed monotonically                                 average 21.9, full attention
                                                                    33.9; 35 ± 2 ms off in time (50
                                                                    ± 7 with seed 1), a band 48,
                                                                    dynamic time warping 17
tickets      40 review hours a day under       generated            82.2 % of the harm covered,
             caps, in whole hours; the same by                      without caps 74.5, equal split
             five reviewers who share the                           63.0, greedy 85.6, no hour
             tickets, in fractions of hours                         wasted; five reviewers 81.7,
                                                                    each alone 75.3
===========  ================================  ===================  ================================

Every module NAME has ``run_NAME(*, seed=0, threads=None, backend=None)``, which returns a `Report`:
`str` of it is for people, `as_dict` for programs, `save` writes its pictures. The article's numbers
are its own, and take no seed.

article.py digits.py recommender.py speech.py tickets.py   one example each
language.py     two halves: translation.py, which word translates which, and docstrings.py
report.py       what they all hand back
"""

EXAMPLES = {
    "article": "the worked example of the article that fastattn began from, with the right numbers",
    "digits": "classify the handwritten digits of scikit-learn by cosine attention",
    "language": "align words with their translations, classify docstrings by attention pooling",
    "recommender": "find held-out items by target attention over ragged histories",
    "speech": "follow noisy speech by windowed and monotonic attention",
    "tickets": "hand out review hours to tickets, under caps and in whole hours",
}
