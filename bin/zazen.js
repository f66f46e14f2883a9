#!/usr/bin/env node
// `zazen`.

import { launch } from './launcher.js';

const words = process.argv.slice(2);
launch('cli/main', words, ['run', 'daemon', 'bench'].includes(words[0]));
