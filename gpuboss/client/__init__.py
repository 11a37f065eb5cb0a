"""The asynchronous client: what a service asks for VRAM with."""

from gpuboss.client.boss import GPUBoss, OtherSettings, Settings
from gpuboss.client.lease import Device, Lease
from gpuboss.client.resident import Resident
from gpuboss.client.wish import Wish

__all__ = ["Device", "GPUBoss", "Lease", "OtherSettings", "Resident", "Settings", "Wish"]
