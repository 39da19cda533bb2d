// npm install --no-save eslint@10.15.0 @eslint/js@10.0.1 && npx eslint --config .github/eslint.config.mjs jattn/visualization/page
import js from "@eslint/js";

const BROWSER = [
  "Blob", "DecompressionStream", "Image", "ImageData", "IntersectionObserver", "Path2D", "ResizeObserver", "Response",
  "URLSearchParams", "addEventListener", "atob", "document", "devicePixelRatio", "getComputedStyle", "history",
  "localStorage", "location", "matchMedia", "navigator", "performance", "prompt", "requestAnimationFrame", "setTimeout",
  "clearTimeout", "window",
];

export default [
  js.configs.recommended,
  {
    languageOptions: {
      ecmaVersion: 2022,
      sourceType: "module",
      globals: Object.fromEntries(BROWSER.map((name) => [name, "readonly"])),
    },
    linterOptions: { reportUnusedDisableDirectives: "error" },
    rules: {
      "array-callback-return": "error",
      "consistent-return": "error",
      "default-case-last": "error",
      "eqeqeq": "error",
      "no-constructor-return": "error",
      "no-duplicate-imports": "error",
      "no-else-return": "error",
      "no-eval": "error",
      "no-implicit-coercion": "error",
      "no-implied-eval": "error",
      "no-new-func": "error",
      "no-param-reassign": "error",
      "no-promise-executor-return": "error",
      "no-self-compare": "error",
      "no-shadow": "error",
      "no-template-curly-in-string": "error",
      "no-unmodified-loop-condition": "error",
      "no-unreachable-loop": "error",
      "no-use-before-define": ["error", { functions: false, variables: false }],
      "no-useless-assignment": "error",
      "no-var": "error",
      "object-shorthand": "error",
      "prefer-const": "error",
      "prefer-template": "error",
      "require-atomic-updates": ["error", { allowProperties: true }],
    },
  },
];
