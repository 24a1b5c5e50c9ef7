"""What a training run will take, told before it starts: memory from the model's sizes, time from measured pieces.

1. `job` says how much an update has to do, and `foresight` what is known before the model is read.
2. `memory` adds up what is in memory at an update's fullest moments.
3. `choice` compares that with the memory that is free, and finds a configuration that fits.
4. `rehearsal` times the pieces of an update on stand-ins of fewer layers; `seconds` puts an update together from them.
5. `answering` does the same for an evaluation, on the model itself.
"""
