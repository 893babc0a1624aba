"""Pictures in: image folders, the packed cache, samplers, augmentation and the data sets made here."""
