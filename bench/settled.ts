// Until a host has done what it puts off while its first guest boots (docs/decisions/2026-11-21-threads-begin-when-needed.md):
// its last threads have begun, and the verbs have been run in advance. It would fall into some sample or other.

import { setTimeout as sleep } from 'node:timers/promises';
import type { Host } from '../src/host/index.ts';

const LOOK_MILLIS = 20;

export async function settled(host: Host): Promise<void> {
  while (!host.stats().isSettled) await sleep(LOOK_MILLIS);
}
