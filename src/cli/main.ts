// The program `zazen`.

import { main } from './front-door.ts';
import { runProcess } from './process.ts';
import { services } from './services.ts';

await runProcess((io) => main(process.argv.slice(2), io, services));
