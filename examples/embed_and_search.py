"""From photos to places in Python: embed a folder, build an index, ask it about other photos.

    python examples/embed_and_search.py

It draws a small town, so that it needs no photos, and uses the checkpoint folder `d2vpr` of the working directory, or
else the checkpoint that comes with the package.
"""

from pathlib import Path

from transformers import AutoImageProcessor, AutoModel

import d2vpr_hf
from d2vpr_hf.photos.folder import read_photo_folder

checkpoint = "d2vpr" if Path("d2vpr").is_dir() else d2vpr_hf.pretrained_path()
model, processor = AutoModel.from_pretrained(checkpoint), AutoImageProcessor.from_pretrained(checkpoint)

folder = Path("runs/embed_and_search")
town = d2vpr_hf.make_town(folder / "town", places=6, views=3, layout="plain", queries=4, easy_queries=0)

# A folder knows its photos and where they were taken; rows of descriptors keep their order.
photos = read_photo_folder(town.database)
descriptors = d2vpr_hf.embed_images(photos.paths, model=model, processor=processor)
rows, dim = descriptors.vectors.shape
print(f"{rows} descriptors of {dim} numbers, {len(descriptors.skipped)} skipped")

index = d2vpr_hf.PlaceIndex.build(descriptors, photos.positions)
index.save(folder / "places")

queries = d2vpr_hf.embed_images(town.queries, model=model, processor=processor)
for answer in d2vpr_hf.locate(queries, d2vpr_hf.PlaceIndex.load(folder / "places"), k=3):
    print(f"\n{Path(answer.query).name}: {answer.latitude:.6f}, {answer.longitude:.6f} ({answer.confidence:.2f})")
    for candidate in answer.candidates:
        print(f"  {candidate['score']:.3f}  {candidate['distance_m']:5.0f} m  {Path(candidate['path']).name}")

# Only places near a prior position, such as the last fix of a receiver, are ranked.
place = index.places.iloc[0]
matches = index.search(queries, k=3, near=(place.latitude, place.longitude), radius_m=30)
print(f"\nwithin 30 m of the first place: {(matches.ids[0] >= 0).sum()} candidates")
