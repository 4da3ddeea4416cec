// Runs edgepack packages in transformers.js: JSON requests on stdin, JSON answers on stdout, in the same order.
//
// Request: {package, dtype, modelClass, prompt: [ids], newTokens, text?, messages?}
// Answer:  {sessions: [names], logits: [one row per prompt token], tokens: [ids]}, greedy; with `text` and `messages`
//          also {ids, chat}: the text as ids, the messages as the chat template renders them. Or {error}.

import { readFile } from 'node:fs/promises';
import { resolve, join } from 'node:path';
import { text } from 'node:stream/consumers';

import * as transformers from '@huggingface/transformers';

const { AutoTokenizer, Tensor, env } = transformers;
env.allowRemoteModels = false;
env.localModelPath = '';

/**
 * What transformers.js has to be told about a package of a text-only checkpoint; undefined where config.json will do.
 *
 * Such a checkpoint names a ForCausalLM class, for which transformers.js expects a single onnx/model.onnx. A ForCausalLM
 * class that meets a ForConditionalGeneration config opens the two text graphs of a package and no encoder.
 */
function textOnlyConfig(config) {
    const [family, modelClass] = { gemma3_text: ['gemma3', 'Gemma3'], gemma3n_text: ['gemma3n', 'Gemma3n'] }[
        config.model_type
    ] ?? [null, null];
    if (family === null) return undefined;
    const { bos_token_id, eos_token_id } = config;
    const architectures = [`${modelClass}ForConditionalGeneration`];
    return { model_type: family, architectures, text_config: config, bos_token_id, eos_token_id };
}

function int64(values) {
    return new Tensor('int64', BigInt64Array.from(values, BigInt), [1, values.length]);
}

async function promptLogits(model, inputs) {
    const { logits } = await model(inputs);
    return logits.tolist()[0];
}

async function greedyTokens(model, inputs, newTokens) {
    const sequences = await model.generate({
        ...inputs,
        max_new_tokens: newTokens,
        do_sample: false,
        eos_token_id: null, // a random model meets its stop token by accident
    });
    return sequences.tolist()[0].slice(inputs.input_ids.dims[1]).map(Number);
}

async function answer(request) {
    const folder = resolve(request.package);
    const config = textOnlyConfig(JSON.parse(await readFile(join(folder, 'config.json'), 'utf8')));
    const model = await transformers[request.modelClass].from_pretrained(folder, { dtype: request.dtype, config });
    const result = { sessions: Object.keys(model.sessions).sort() };
    const inputs = { input_ids: int64(request.prompt), attention_mask: int64(request.prompt.map(() => 1)) };
    result.logits = await promptLogits(model, inputs);
    result.tokens = await greedyTokens(model, inputs, request.newTokens);
    await model.dispose();
    if (request.text === undefined) return result;

    const tokenizer = await AutoTokenizer.from_pretrained(folder);
    result.ids = tokenizer(request.text).input_ids.tolist()[0].map(Number);
    // transformers.js looks for a template in tokenizer_config.json only.
    const chat_template = await readFile(join(folder, 'chat_template.jinja'), 'utf8');
    const options = { chat_template, tokenize: false, add_generation_prompt: true };
    result.chat = tokenizer.apply_chat_template(request.messages, options);
    return result;
}

const answers = [];
for (const request of JSON.parse(await text(process.stdin))) {
    answers.push(await answer(request).catch((error) => ({ error: error.message })));
}
const versions = { transformers: env.version, onnxruntime: env.backends.onnx.versions?.node, node: process.version };
process.stdout.write(JSON.stringify({ versions, answers }));
