// A host of its own, to be killed: `node FILE [TYPE ROOT DISK]...`. Each guest, on its root file system, writes numbered
// files to an ext4 on the disk, each flushed before it says so; half-way a checkpoint is taken.

import { createInterface } from 'node:readline';
import { hostMemory } from '../host-memory.ts';
import { Host } from '../../src/host/index.ts';
import { FAST_BOOT, collect } from './guests.ts';

const words = process.argv.slice(2);
const host = await Host.start({ memory: hostMemory('768MiB'), pcpus: 1 });
const guests: Promise<void>[] = [];
for (let i = 0; i < words.length; i += 3) guests.push(begin(words[i] as 'pvh' | 'hvm', words[i + 1]!, words[i + 2]!));
await Promise.all(guests);

async function begin(type: 'pvh' | 'hvm', root: string, disk: string): Promise<void> {
  const exec = `mount ${type === 'pvh' ? '/dev/xvdb' : '/dev/vdb'} /mnt; i=0; while :; do
    echo "file $i" | dd of=/mnt/f$i conv=fsync 2>/dev/null && echo "flushed $i"
    i=$((i+1))
  done`;
  const domain = await host.create({
    type, memory: '128MiB', cmdline: `${FAST_BOOT} root=/dev/xvda`, disks: [{ path: root }, { path: disk }], exec,
  });
  const output = collect(domain.exec!.output);
  createInterface(domain.exec!.output).on('line', (line) => process.stdout.write(`${type} ${line}\n`));
  await output.until('flushed 6\n');
  await domain.checkpoint();
}
