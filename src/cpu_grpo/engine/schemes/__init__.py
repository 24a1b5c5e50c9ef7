"""The schemes that train in less memory: `lean` updates bf16 weights one by one in backward, `lora` trains adapters.

They know parameters and gradients, nothing of rollouts or rewards.
"""
