// A host of its own, to be killed: its guest, of the type that is asked for, writes numbered blocks, each flushed before it says so.

import { FAST_BOOT, collect } from './guests.ts';
import { hostMemory } from '../host-memory.ts';
import { Host } from '../../src/host/index.ts';
import { createInterface } from 'node:readline';

const path = process.argv[2]!;
const type = process.argv[3] === 'hvm' ? 'hvm' : 'pvh';
const device = type === 'hvm' ? '/dev/vda' : '/dev/xvda';
const host = await Host.start({ memory: hostMemory('512MiB'), pcpus: 1 });
const script = `i=0; while [ $i -lt 64 ]; do
  echo "block $i " | dd of=${device} bs=4096 seek=$((i*16)) conv=notrunc,sync,fsync 2>/dev/null && echo "flushed $i"
  i=$((i+1))
done; sleep 1000`;
const domain = await host.create({ type, memory: '128MiB', cmdline: FAST_BOOT, disks: [{ path, format: 'raw' }], exec: script });
const output = collect(domain.exec!.output);
createInterface(domain.exec!.output).on('line', (line) => process.stdout.write(`${line}\n`));
await output.until('flushed 20');
await domain.checkpoint();
