"""What every scenario does first: a published, signed release."""

import base64

from flota.client.management import ManagementClient
from flota.client.schemas import Release
from flota.trust.keys import PrivateKey


def publish(client: ManagementClient, key: PrivateKey, type_name: str, version: str, image: bytes) -> Release:
    """Upload, create, sign and publish."""
    artifact = client.upload_bytes(image, f"{type_name}-{version}.bin")
    release = client.create_release(type_name, version, artifact.sha256)
    signature = key.sign(client.manifest(release.id))
    text = base64.b64encode(signature.signature).decode()
    client.add_signature(release.id, signature.key_id, signature.algorithm, text)
    return client.publish(release.id)
