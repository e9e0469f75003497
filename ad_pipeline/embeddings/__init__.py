"""One vector a user, learnt from what the user did, and who is similar to whom.

What a user did becomes sequences, an encoder makes one vector of each, and the vectors are stored
by version, refreshed when they are due and never mixed across versions. From the stored vectors
follow the graph of similar users and, from what these engaged with, candidates of ads. (Wang et
al., "Async Learned User Embeddings for Ads Delivery Optimization", arXiv 2406.05898.)

After each log hour the vectors that are due are computed and published; nothing of it is made
unless the settings ask for it. Rankers that read vectors as features, and how much they gain,
belong to later rooms.
"""
