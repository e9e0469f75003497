"""Probabilities of ad engagement from models that keep learning while labels are on their way.

The path, in the order in which data passes it:

``events``      what happened: contract, dataset files, readers, quarantine
``examples``    label join, label states, what a learner may see when
``features``    point-in-time rates, encoding, hashing, inverse dictionary
``learners``    online and batch learners, their ensemble, calibration
``serving``     bundle, scorer, promotion, rollback
``monitoring``  drift, parity, verdicts

Beside it ``evaluation`` holds measures and intervals, and ``embeddings`` the vectors of users and
who is similar to whom; after it ``simulation`` plays the outside world. Modules beside the rooms
(``settings``, ``datasets``, ``clocks``, ``hashing``, ``checkpoints``, ``warehouse``, ``xla``)
import no room and serve all. ``defs`` hands the rooms to Dagster and is the only code that imports
it; ``cli`` works without it. Which room may import which is asserted in
``ad_pipeline_tests/test_layout.py``.
"""
