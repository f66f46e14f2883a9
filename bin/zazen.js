#!/usr/bin/env node
// `zazen`, of a checkout.

import { launch } from './launcher.js';

const words = process.argv.slice(2);
launch('../src/cli/main.ts', words, ['run', 'daemon', 'bench'].includes(words[0]));
