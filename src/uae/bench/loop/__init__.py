"""Any captioner with any painter: image → caption by one, caption → image by the other.

    tiny -> tiny-ar                                captioner -> painter
    captions.jsonl -> tiny                         captions made elsewhere
    http://localhost:8000/v1#gpt-4o -> tiny        a model behind an endpoint (chat with images)
    tiny -> https://api.example/v1#gpt-image-1     … (images API)

A model by itself is both. Whatever one of them cannot do of an image is the reason why that image
is left out; what was made of the others stays.
"""
